"""Adapters on a frozen base: options, targets, and PEFT's layers."""
