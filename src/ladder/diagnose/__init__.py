"""Alarms: detectors of what can go wrong in reinforcement learning; each raises a named finding with its evidence."""
