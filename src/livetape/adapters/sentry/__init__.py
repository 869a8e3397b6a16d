"""Reports of errors to Sentry."""
