"""What training costs: time (`fptt bench speed`) and memory (`fptt bench memory`)."""
