"""What usage costs: money, meters, cards, their selection and the arithmetic. No I/O and no clock."""
