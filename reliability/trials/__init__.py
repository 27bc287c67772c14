"""What goes wrong around a model, one module a kind. A trial is a function of (subject, times): it raises AssertionError
where something else happens than should, and returns what came out, in a phrase."""
