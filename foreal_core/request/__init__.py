"""One request: its text as it grows, what each model computed for it, what comes next. No torch."""
