-- Sets what a file has of its tenant's quotas. ARGV: as `hold` wants it. Result: {}, or name, limit and present use of
-- the quota in the way.
go_on_without_memory()
return hold(1) or {}
