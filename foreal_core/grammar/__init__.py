"""What may come next: answers held to a JSON schema, over both models' tokens. No torch."""
