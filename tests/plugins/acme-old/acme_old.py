"""A plugin for another hook API; it must not be imported."""

raise AssertionError("acme_old was imported")
