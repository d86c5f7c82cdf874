"""The documentation site: `build` writes it, `pages` says what is on it, `links` reads it again."""
