"""Alarms: what can be seen going wrong while rewards are learned, each a named finding with its evidence."""
