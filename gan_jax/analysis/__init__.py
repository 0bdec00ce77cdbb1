"""A run looked at from outside: its dynamics, its cost, its plan on other devices."""
