//go:build race

package place

// raceDetector makes everything several times slower.
const raceDetector = true
