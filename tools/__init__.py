"""Tools that are run from the repository root and never installed."""
