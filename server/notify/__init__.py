"""Notifications: tells people and programs elsewhere what is wrong in the fleet, and when that is over.

`situations` gathers what is wrong now, and `decide` compares it with what an Alert has told: both are plain functions.
`messages` writes what is sent. A decision and its messages are stored in one transaction, and each message stays in the
store until it was delivered, or a day has passed.
"""
