"""The limits that several relays keep together, as the database has them."""
