-- Gives back what a file has of its tenant's quotas. ARGV: file id. Result: its tenant, false when it has nothing.
go_on_without_memory()
return drop(ARGV[1]) or false
