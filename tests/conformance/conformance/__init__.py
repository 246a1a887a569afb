"""CRI's public conformance suite against Magnetar, with runc beside it."""
