{"signature":"6WHadnJ/SF2E6FM1XWEuRpj+7hbrPanUN2qnVQfiCAYEGsbO+OkeWcGLV+tYstkIMnwHelY9IdVhEFbSazAnDg==","version":1}
