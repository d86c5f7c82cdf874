"""The documentation site: `build` writes it, `pages` defines its pages, `links` checks them."""
