{"signature":"RoSrOWO67VcyHFnJjdJsah8jnDH+5HLH7Jefy0QnsPGqrrUndHk4CAoAS5fG1f6BjkbNCdf1PH3EUMOyHGIwAA==","version":1}
