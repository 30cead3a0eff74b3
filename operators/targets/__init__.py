"""The targets that come with Breakwater: HTTP, Postgres, a function of the user's."""
