"""Families that predict a flow."""
