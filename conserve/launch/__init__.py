"""One machine's whole stack: embedded Redis, a Ray head and the Serve application, brought up and taken down."""
