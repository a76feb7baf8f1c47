"""The application with light engines and a cluster of several nodes on this machine, to try out what fails in it."""
