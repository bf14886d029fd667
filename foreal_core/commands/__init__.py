"""The subcommands of `foreal`, one module each; models are imported when one runs."""
