"""`dbt evaluate`: how like the subject, how free, how well the class is kept."""
