package jobs

import (
	"bytes"
	"fmt"
	"image/color"
	"image/png"
	"math"
	"math/cmplx"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The answers here are computed in other ways than the jobs compute them: a
// transform by its definition, one plate in one piece, a triple loop.

const points = 4096

// sunspotPower is the power spectrum of the faded series, by the definition of
// the discrete Fourier transform: index k stands for a period of points/12/k years.
func sunspotPower(t *testing.T) []float64 {
	t.Helper()
	data, err := os.ReadFile("sunspots/sunspots.csv")
	if err != nil {
		t.Fatal(err)
	}
	var series []float64
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n")[1:] {
		_, value, _ := strings.Cut(line, ",")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		series = append(series, v)
	}
	mean := 0.0
	for _, v := range series {
		mean += v / float64(len(series))
	}
	for i := range series {
		series[i] = (series[i] - mean) * 0.5 * (1 - math.Cos(2*math.Pi*float64(i)/float64(len(series)-1)))
	}
	power := make([]float64, points/2)
	for k := range power {
		var sum complex128
		turn, step := complex(1, 0), cmplx.Exp(complex(0, -2*math.Pi*float64(k)/points))
		for _, v := range series {
			sum += complex(v, 0) * turn
			turn *= step
		}
		power[k] = real(sum)*real(sum) + imag(sum)*imag(sum)
	}
	return power
}

func checkSunspots(t *testing.T, stdout string, spectrum []byte) {
	t.Helper()
	want := sunspotPower(t)
	best := 1
	for k := 1; k < len(want); k++ {
		if want[k] > want[best] {
			best = k
		}
	}
	years := points / 12.0 / float64(best)
	if years < 10 || years > 12 {
		t.Fatalf("the definition finds %.2f years: the test itself is wrong", years)
	}
	if say := fmt.Sprintf("the strongest cycle is %.2f years", years); !strings.Contains(stdout, say) {
		t.Errorf("stdout is %q, want it to say %q", stdout, say)
	}
	lines := strings.Split(strings.TrimSpace(string(spectrum)), "\n")[1:]
	if len(lines) != len(want)-1 {
		t.Fatalf("spectrum.csv has %d lines, want %d", len(lines), len(want)-1)
	}
	for i, line := range lines {
		_, value, _ := strings.Cut(line, ",")
		got, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("spectrum.csv line %d: %v", i+2, err)
		}
		if math.Abs(got-want[i+1]) > 1e-6*want[best] {
			t.Fatalf("power at %d is %g, by definition %g", i+1, got, want[i+1])
		}
	}
}

// checkHeat compares the picture with one plate computed in one piece.
func checkHeat(t *testing.T, picture []byte, size, steps int) {
	t.Helper()
	stride := size + 2
	now, then := make([]float64, stride*stride), make([]float64, stride*stride)
	for x := range stride {
		now[x], then[x] = 100, 100
	}
	for range steps {
		for y := 1; y <= size; y++ {
			for x := 1; x <= size; x++ {
				i := y*stride + x
				then[i] = 0.25 * (now[i-stride] + now[i+stride] + now[i-1] + now[i+1])
			}
		}
		now, then = then, now
	}
	got, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatal(err)
	}
	if b := got.Bounds(); b.Dx() != size || b.Dy() != size {
		t.Fatalf("the picture is %v, want %d x %d", b, size, size)
	}
	for y := range size {
		for x := range size {
			heat := now[(y+1)*stride+x+1] / 100
			var want [3]uint8
			for c := range want {
				want[c] = uint8(255 * min(1, max(0, 3*heat-float64(c))))
			}
			p := color.RGBAModel.Convert(got.At(x, y)).(color.RGBA)
			for c, v := range [3]uint8{p.R, p.G, p.B} {
				if d := int(v) - int(want[c]); d < -1 || d > 1 {
					t.Fatalf("point %d,%d is %v, want %v", x, y, p, want)
				}
			}
		}
	}
}

func checkMandelbrot(t *testing.T, stdout string, picture []byte, width, height, limit int) {
	t.Helper()
	got, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatal(err)
	}
	if b := got.Bounds(); b.Dx() != width || b.Dy() != height {
		t.Fatalf("the picture is %v, want %d x %d", b, width, height)
	}
	inside := 0
	for y := range height {
		for x := range width {
			c := complex((float64(x)+0.5)/float64(width)*3.2-2.2, (float64(y)+0.5)/float64(height)*2.4-1.2)
			var z complex128
			steps := 0
			for ; steps < limit; steps++ {
				z = z*z + c
				if real(z)*real(z)+imag(z)*imag(z) > 4 {
					break
				}
			}
			want := color.RGBA{A: 255}
			if steps == limit {
				inside++
			} else if t := float64(steps%64) / 64; t < 0.5 {
				want = color.RGBA{uint8(510 * t), uint8(510 * t), uint8(100 + 310*t), 255}
			} else {
				want = color.RGBA{255, uint8(255 - 180*(t-0.5)), uint8(255 - 470*(t-0.5)), 255}
			}
			if p := color.RGBAModel.Convert(got.At(x, y)); p != want {
				t.Fatalf("point %d,%d is %v, want %v", x, y, p, want)
			}
		}
	}
	if say := fmt.Sprintf("%d x %d points, %d inside", width, height, inside); !strings.Contains(stdout, say) {
		t.Errorf("stdout is %q, want it to say %q", stdout, say)
	}
}

// checkCannon multiplies the matrices by the definition; blocks holds block.txt
// of each process.
func checkCannon(t *testing.T, blocks [][]byte, size int) {
	t.Helper()
	side := int(math.Sqrt(float64(len(blocks))))
	n := size / side
	product := func(i, j int) (sum int64) {
		for k := range size {
			sum += int64((3*i+7*k)%11-5) * int64((5*k+2*j)%13-6)
		}
		return sum
	}
	for at, text := range blocks {
		fields := strings.Fields(string(text))
		if len(fields) != n*n {
			t.Fatalf("block %d has %d numbers, want %d", at, len(fields), n*n)
		}
		for f, field := range fields {
			i, j := at/side*n+f/n, at%side*n+f%n
			if want := product(i, j); field != strconv.FormatInt(want, 10) {
				t.Fatalf("element %d,%d is %s, want %d", i, j, field, want)
			}
		}
	}
}

func checkPipeline(t *testing.T, stdout string, words []byte, top int) {
	t.Helper()
	text, err := os.ReadFile("pipeline/constitution.txt")
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, word := range regexp.MustCompile(`[a-z]+`).FindAllString(strings.ToLower(string(text)), -1) {
		count[word]++
	}
	var lines []string
	for word, n := range count {
		lines = append(lines, fmt.Sprintf("%d %s", n, word))
	}
	slices.SortFunc(lines, func(a, b string) int {
		na, wa, _ := strings.Cut(a, " ")
		nb, wb, _ := strings.Cut(b, " ")
		ia, _ := strconv.Atoi(na)
		ib, _ := strconv.Atoi(nb)
		if ia != ib {
			return ib - ia
		}
		return strings.Compare(wa, wb)
	})
	if got := strings.TrimSpace(string(words)); got != strings.Join(lines, "\n") {
		t.Errorf("words.txt differs from an independent count: it begins %.60q, want %.60q", got, strings.Join(lines, "\n"))
	}
	if got := strings.TrimSpace(stdout); got != strings.Join(lines[:top], "\n") {
		t.Errorf("stdout is %q, want %q", got, lines[:top])
	}
}

// checkFarm counts by the sieve of Eratosthenes.
func checkFarm(t *testing.T, stdout string, primes []byte, shares []string, limit, orders int) {
	t.Helper()
	composite := make([]bool, limit)
	want := 0
	for n := 2; n < limit; n++ {
		if composite[n] {
			continue
		}
		want++
		for k := n * n; k < limit; k += n {
			composite[k] = true
		}
	}
	if got := fmt.Sprintf("%d primes below %d\n", want, limit); stdout != got {
		t.Errorf("stdout is %q, want %q", stdout, got)
	}
	if got := strings.TrimSpace(string(primes)); got != strconv.Itoa(want) {
		t.Errorf("primes.txt says %s, want %d", got, want)
	}
	done := 0
	for _, share := range shares {
		var n int
		if _, err := fmt.Sscanf(share, "%d orders\n", &n); err != nil {
			t.Errorf("a worker says %q: %v", share, err)
		}
		done += n
	}
	if done != orders {
		t.Errorf("the workers did %d orders of %d: %q", done, orders, shares)
	}
}

// checkTranslate compares every position with Kepler's laws: from the time to
// the angle by his equation, and the period by the third law.
// checkAlarms wants each alarm once, as the instrument computes it, the most urgent
// first, and none below 2.
func checkAlarms(t *testing.T, table []byte, alarms int) {
	t.Helper()
	var want strings.Builder
	for urgency := 4; urgency >= 2; urgency-- {
		for i := range alarms {
			if i*7%5 == urgency {
				fmt.Fprintf(&want, "%d %d %.1f\n", urgency, i, float64(200+37*i%100)/10)
			}
		}
	}
	if string(table) != want.String() {
		t.Errorf("alarms.txt is\n%swant\n%s", table, want.String())
	}
}

func checkTranslate(t *testing.T, stdout string, table []byte, years float64) {
	t.Helper()
	const axis, eccentricity = 5.2038, 0.0489
	period := math.Pow(axis, 1.5)
	if say := fmt.Sprintf("a round takes %.3f years\n", period); stdout != say {
		t.Errorf("stdout is %q, want %q", stdout, say)
	}
	lines := strings.Split(strings.TrimSpace(string(table)), "\n")[1:]
	if want := int(math.Round(years*100)) + 1; len(lines) != want {
		t.Fatalf("orbit.csv has %d lines, want %d", len(lines), want)
	}
	for i, line := range lines {
		var at, x, y float64
		if _, err := fmt.Sscanf(line, "%g,%g,%g", &at, &x, &y); err != nil {
			t.Fatalf("orbit.csv line %d, %q: %v", i+2, line, err)
		}
		mean := 2 * math.Pi * at / period
		angle := mean
		for range 50 {
			angle = mean + eccentricity*math.Sin(angle)
		}
		wantX, wantY := axis*(math.Cos(angle)-eccentricity), axis*math.Sqrt(1-eccentricity*eccentricity)*math.Sin(angle)
		if math.Abs(at-float64(i)/100) > 1e-9 || math.Hypot(x-wantX, y-wantY) > 1e-4 {
			t.Fatalf("after %g years orbit.csv has it at %g, %g; by Kepler's equation it is at %g, %g", at, x, y, wantX, wantY)
		}
	}
}

// checkFlynn computes the functions by other means: divisors with a sieve,
// Collatz's steps by recursion, the totient by counting, and sums of two squares
// by Jacobi's formula.
func checkFlynn(t *testing.T, results string, ranges map[string][][2]int) {
	t.Helper()
	const limit = 1000
	divisors, by1, by3 := make([]int, limit), make([]int, limit), make([]int, limit)
	for d := 1; d < limit; d++ {
		for n := d; n < limit; n += d {
			divisors[n]++
			switch d % 4 {
			case 1:
				by1[n]++
			case 3:
				by3[n]++
			}
		}
	}
	var collatz func(n int) int
	collatz = func(n int) int {
		switch {
		case n == 1:
			return 0
		case n%2 == 0:
			return 1 + collatz(n/2)
		}
		return 2 + collatz((3*n+1)/2)
	}
	var gcd func(a, b int) int
	gcd = func(a, b int) int {
		if b == 0 {
			return a
		}
		return gcd(b, a%b)
	}
	value := map[string]func(n int) int{
		"divisors": func(n int) int { return divisors[n] },
		"collatz":  collatz,
		"totient": func(n int) (count int) {
			for k := 1; k <= n; k++ {
				if gcd(n, k) == 1 {
					count++
				}
			}
			return count
		},
		"squares": func(n int) int { return 4 * (by1[n] - by3[n]) },
	}
	var want []string
	for function, all := range ranges {
		for _, r := range all {
			for n := r[0]; n <= r[1]; n++ {
				want = append(want, fmt.Sprintf("%s %d %d", function, n, value[function](n)))
			}
		}
	}
	got := strings.Split(strings.TrimSpace(results), "\n")
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the results are %d lines, want %d:\n%.2000s", len(got), len(want), results)
	}
}

func checkSort(t *testing.T, stdout, sorted string, processes, count int) {
	t.Helper()
	if want := fmt.Sprintf("%d processes sorted %d keys\n", processes, count); stdout != want {
		t.Errorf("stdout is %q, want %q", stdout, want)
	}
	keys, state := make([]uint64, count), uint64(88172645463325252)
	for k := range keys {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		keys[k] = state
	}
	slices.Sort(keys)
	var want strings.Builder
	for _, k := range keys {
		fmt.Fprintln(&want, k)
	}
	if sorted != want.String() {
		t.Errorf("sorted.txt is not what it should be: %d bytes, want %d", len(sorted), want.Len())
	}
}
