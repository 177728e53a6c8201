"""What server, client and simulations share: data, text features, the recommender and its meta-learning maths."""
