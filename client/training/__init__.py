"""From a site's records to a clipped sum of its patients' gradients."""
