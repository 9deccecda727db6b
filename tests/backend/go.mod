module tlsfarm.dev/tests/backend

go 1.22
