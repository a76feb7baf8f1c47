"""The console: one page that shows the application live, and what feeds it."""
