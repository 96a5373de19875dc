{"signature":"6FWzhx6Jzn5tKKoZBEFgFUOdFSWirRYZrgt34xnemzmrXqj19fCcrQi6km07lvXABRi2al6z98joiYzPD3ARDg==","version":1}
