"""From answers and costs to the verdict, the page and the tables."""
