{"signature":"tX0ey1TRtNr57osSi7OH0hicV1lFzsXxtyuli5yAj8YQaBlNvCFCv+J70ZONcMuyWxj5BIN9OOMylLPk1JY2BQ==","version":1}
