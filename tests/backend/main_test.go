package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func get(t *testing.T, request *http.Request) (*http.Response, string) {
	t.Helper()
	server := httptest.NewServer(handler("pod-1"))
	defer server.Close()
	request.URL.Scheme, request.URL.Host = "http", server.Listener.Addr().String()
	request.RequestURI = ""
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

func TestSaysWhatItReceived(t *testing.T) {
	request := httptest.NewRequest("PUT", "http://shop.example.com/a/b?c=d", nil)
	request.Header.Add("X-Forwarded-For", "192.0.2.1")
	request.Header.Add("X-Forwarded-For", "192.0.2.2")
	_, body := get(t, request)
	var got received
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if got.Pod != "pod-1" || got.Method != "PUT" || got.Path != "/a/b?c=d" || got.Host != "shop.example.com" ||
		got.Proto != "HTTP/1.1" || got.Headers["X-Forwarded-For"] != "192.0.2.1, 192.0.2.2" {
		t.Errorf("got %+v", got)
	}
}

func TestBytesStatusAndEcho(t *testing.T) {
	if r, body := get(t, httptest.NewRequest("GET", "/bytes/100000", nil)); len(body) != 100000 || r.ContentLength != 100000 {
		t.Errorf("bytes: %d, length %d", len(body), r.ContentLength)
	}
	for _, path := range []string{"/bytes/-1", "/bytes/x", "/status/99", "/delay/-5"} {
		if r, _ := get(t, httptest.NewRequest("GET", path, nil)); r.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d", path, r.StatusCode)
		}
	}
	if r, _ := get(t, httptest.NewRequest("GET", "/status/503", nil)); r.StatusCode != 503 {
		t.Errorf("status: %d", r.StatusCode)
	}
	text := strings.Repeat("tickets ", 100000)
	request := httptest.NewRequest("POST", "/echo", strings.NewReader(text))
	request.Header.Set("Content-Type", "text/x-test")
	if r, body := get(t, request); body != text || r.Header.Get("Content-Type") != "text/x-test" {
		t.Errorf("echo: %d bytes, %s", len(body), r.Header.Get("Content-Type"))
	}
}

func TestTrailers(t *testing.T) {
	request := httptest.NewRequest("POST", "/trailers", strings.NewReader("12345"))
	request.ContentLength = -1
	request.Trailer = http.Header{"X-Sum": {"15"}}
	r, body := get(t, request)
	if r.Trailer.Get("X-Body-Bytes") != "5" || r.Trailer.Get("X-Done") != "yes" || !strings.Contains(body, `"trailers":{"X-Sum":"15"}`) {
		t.Errorf("trailers %v, body %s", r.Trailer, body)
	}
}

func TestServesOnAfterTheSignalAndFinishesRequests(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, signal := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l, handler("pod-1"), 300*time.Millisecond) }()
	url := "http://" + l.Addr().String()
	signal()
	if _, err := http.Get(url); err != nil {
		t.Errorf("new request while lingering: %v", err)
	}
	response, err := http.Get(url + "/delay/600") // ends after the linger
	if err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("request in flight: %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}
