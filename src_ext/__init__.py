"""The compiled core. Importing a missing module is an error: there is no slower substitute."""
