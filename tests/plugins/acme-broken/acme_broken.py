"""A plugin whose own dependency is missing."""

import acme_sdk  # noqa: F401 -- it does not exist
