{"signature":"0c+yFpFxHFWdWlpr1QndJjJVloDTax3O7xlsNFMG5QCKWbQAxSMRtycPjNqe1S++1vSgO96nYlsSob+fZxY9Bw==","version":1}
