"""The report on runs: tables, figures, pictures, page."""
