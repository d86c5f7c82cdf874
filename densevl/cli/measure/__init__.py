"""Commands that measure: settings for the user's own pictures, and what a score hides."""
