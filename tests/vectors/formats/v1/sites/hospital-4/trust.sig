{"signature":"MGCK3fxpQBqU7UOtfl8SRjlKorEHXi9H/G6nJ86vMS8iET+KgUlDeDddNMVmtsXJA0bSSEv8eho7x/BmNcCnDg==","version":1}
