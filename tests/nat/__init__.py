"""Ports opened in routers."""
