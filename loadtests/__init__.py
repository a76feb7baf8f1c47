"""Load and demonstrations: what ConServe is measured with. Talks to it over HTTP alone, as any client would."""
