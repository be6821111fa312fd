"""The formats that records come in: each can be read, and written where both can say it."""
