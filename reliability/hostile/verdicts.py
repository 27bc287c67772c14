"""What may come of a file; anything else is a failure. Apart, so that who reads them does not import the package."""

READ, REFUSED = "read", "refused"
