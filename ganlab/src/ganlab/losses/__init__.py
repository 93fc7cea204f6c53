"""Losses: functions over tensors, and the balance that weighs their terms."""
