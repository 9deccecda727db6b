// Command backend is the web server behind the farm in the demo and the tests. It says what it received, so that a
// test can see what the proxy sent, and it can be slow, large or wrong on request.
//
//	/              what was received, as JSON (so is every path not listed)
//	/bytes/N       N bytes
//	/delay/MS      the JSON, after MS milliseconds
//	/echo          the request's body with its content type, as it arrives
//	/status/CODE   the JSON with that status
//	/trailers      reads the body; the JSON names the request's trailers, the response ends with trailers of its own
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	maxBytes = 1 << 30
	maxDelay = 5 * time.Minute
)

// received is what the JSON answers hold. A header that came in several lines is joined with ", ".
type received struct {
	Pod      string            `json:"pod"`
	Method   string            `json:"method"`
	Path     string            `json:"path"`
	Host     string            `json:"host"`
	Proto    string            `json:"proto"`
	Remote   string            `json:"remote"`
	Headers  map[string]string `json:"headers"`
	Trailers map[string]string `json:"trailers,omitempty"`
}

func joined(h http.Header) map[string]string {
	out := make(map[string]string, len(h))
	for name, values := range h {
		out[name] = strings.Join(values, ", ")
	}
	return out
}

func handler(pod string) http.Handler {
	answer := func(w http.ResponseWriter, r *http.Request, status int) {
		body, err := json.Marshal(received{
			Pod: pod, Method: r.Method, Path: r.URL.RequestURI(), Host: r.Host, Proto: r.Proto, Remote: r.RemoteAddr,
			Headers: joined(r.Header), Trailers: joined(r.Trailer),
		})
		if err != nil {
			panic(err) // strings only: cannot fail
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		w.Write(append(body, '\n'))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { answer(w, r, http.StatusOK) })

	mux.HandleFunc("/bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
		if err != nil || n < 0 || n > maxBytes {
			http.Error(w, fmt.Sprintf("give a number of bytes from 0 to %d", maxBytes), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		io.CopyN(w, pattern{}, n)
	})

	mux.HandleFunc("/delay/{ms}", func(w http.ResponseWriter, r *http.Request) {
		ms, err := strconv.Atoi(r.PathValue("ms"))
		delay := time.Duration(ms) * time.Millisecond
		if err != nil || delay < 0 || delay > maxDelay {
			http.Error(w, fmt.Sprintf("give milliseconds from 0 to %d", maxDelay.Milliseconds()), http.StatusBadRequest)
			return
		}
		select {
		case <-time.After(delay):
			answer(w, r, http.StatusOK)
		case <-r.Context().Done():
		}
	})

	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		// Without this HTTP/1 reads what is left of the body before the first byte of the answer goes out.
		http.NewResponseController(w).EnableFullDuplex()
		if t := r.Header.Get("Content-Type"); t != "" {
			w.Header().Set("Content-Type", t)
		}
		if r.ContentLength >= 0 {
			w.Header().Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
		}
		if _, err := io.Copy(flushing{w, http.NewResponseController(w)}, r.Body); err != nil {
			panic(http.ErrAbortHandler) // a cut body must not look whole
		}
	})

	mux.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.PathValue("code"))
		if err != nil || code < 200 || code > 599 {
			http.Error(w, "give a status from 200 to 599", http.StatusBadRequest)
			return
		}
		answer(w, r, code)
	})

	mux.HandleFunc("/trailers", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Trailer", "X-Body-Bytes, X-Done")
		answer(w, r, http.StatusOK)
		w.Header().Set("X-Body-Bytes", strconv.FormatInt(n, 10))
		w.Header().Set("X-Done", "yes")
	})
	return mux
}

// pattern is an endless stream of the lower-case alphabet.
type pattern struct{}

func (pattern) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a' + byte(i%26)
	}
	return len(p), nil
}

// flushing sends every write at once, so that a stream is echoed while it is still being sent.
type flushing struct {
	io.Writer
	control *http.ResponseController
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	if err == nil {
		err = f.control.Flush()
	}
	return n, err
}

// serve answers on l until ctx ends, goes on for linger, then lets what is in flight finish.
func serve(ctx context.Context, l net.Listener, h http.Handler, linger time.Duration) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// Whoever balances over this pod learns only some time after SIGTERM that it is going.
	time.Sleep(linger)
	server.SetKeepAlivesEnabled(false)
	last, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return server.Shutdown(last)
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func main() {
	listen := flag.String("listen", env("LISTEN", ":8080"), "address to listen on (or LISTEN)")
	linger := flag.Duration("linger", 5*time.Second, "how long to go on serving after SIGTERM")
	flag.Parse()
	hostname, _ := os.Hostname()
	pod := env("HOSTNAME", hostname)

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("%s listens on %s", pod, l.Addr())
	if err := serve(ctx, l, handler(pod), *linger); err != nil && !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}
