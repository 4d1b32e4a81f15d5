"""`dbt doctor`: what is wrong with the pictures of a job, before anything is trained. No torch."""
