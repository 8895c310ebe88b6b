"""Engines that have a hosted service make the pictures: one file a service, and what they share."""
