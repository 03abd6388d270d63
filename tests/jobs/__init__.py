"""A project's app, as the tests need one: a run model and its admin."""
