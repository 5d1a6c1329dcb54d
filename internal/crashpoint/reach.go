//go:build !crashpoints

package crashpoint

// Reach marks that the process has got to p.
func Reach(Point) {}
