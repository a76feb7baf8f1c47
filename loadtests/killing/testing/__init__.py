"""Light engines that runs with kills use in place of real ones."""
